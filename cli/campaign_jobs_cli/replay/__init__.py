"""Events of the topic once more, with a plan first: `campaign-jobs replay`."""
