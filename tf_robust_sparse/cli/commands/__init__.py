"""One module for each command: its flags, `define`, and its work, `main`."""
