"""How far everybody is behind: what `campaign-jobs lag` shows."""
