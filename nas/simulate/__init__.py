"""A search over a table of finished architectures, in virtual time: the study's own loop, with nothing trained."""
