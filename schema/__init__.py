"""The face: the GraphQL contract in terms of services."""
