"""What the command line runs: a module or a package a command."""
