"""What the sales family does in the database: plain functions of a session."""
