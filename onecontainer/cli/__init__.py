"""`oca`, the command line. Its root imports click and nothing else, so that `oca --help` is there at once."""
