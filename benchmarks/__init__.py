"""What campaign-jobs costs and what it does in a second, beside its peers and the bare libraries."""
