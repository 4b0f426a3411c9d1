"""The command line of operators and developers, for the local system and for a deployed environment alike."""
