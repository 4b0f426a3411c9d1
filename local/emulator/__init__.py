"""The deployed stack on one machine: ministack takes the CDK's deployment, with real servers behind some resources."""
