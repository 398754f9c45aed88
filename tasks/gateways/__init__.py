"""What several families need from outside: one room for each kind of service."""
