"""Sales in the graph: what is read and what is changed, merged into the root by its names."""

from schema.families.sales.changes import Mutation
from schema.families.sales.reads import Query

__all__ = ["Mutation", "Query"]
