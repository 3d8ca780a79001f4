"""Several gateways on one database: what they tell each other, who leads, and whose sidecar is whose."""
