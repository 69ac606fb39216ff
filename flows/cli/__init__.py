"""The command line: `tpo`, its subcommands, and how they start and stop."""
