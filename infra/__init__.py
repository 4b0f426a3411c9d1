"""The CDK app's constructs: one noun per file, wired together in stack.py."""
