"""The ground: tenants, principals, and the one door through which each reaches its data."""
