"""Standard Webhooks to the endpoints of tenants, who may name any URL they like."""
