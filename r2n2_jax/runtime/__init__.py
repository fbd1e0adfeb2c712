"""What the programs run on: the devices that share the work, and the compiled programs that are kept for the next command."""
