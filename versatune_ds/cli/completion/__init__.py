"""Completion of the command line in bash, zsh and fish: subcommands, options, files, recipe keys and their values."""
