"""campaign-jobs' own side: the same effect as a job on the real pipeline."""
