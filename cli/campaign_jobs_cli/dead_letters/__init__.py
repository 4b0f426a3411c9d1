"""What was given up: read, sent back, or thrown away by `campaign-jobs dead-letters`."""
