"""`nas doctor`: what is wrong with this machine, with data and with a run, and what of it can be mended without harm."""
