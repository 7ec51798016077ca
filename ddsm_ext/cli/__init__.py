"""The `ddsm` command: argument parsing, one file a command, and the composition of the parts."""
