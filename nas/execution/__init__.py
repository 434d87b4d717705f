"""Running attempts elsewhere: the executor's contract, warm child processes, Ray actors, and the work itself."""
