"""The one pipeline of every event job: decode, process, settle."""
