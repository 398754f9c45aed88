"""The work: runs, the dispatcher that releases them, the workers that execute them, and the families of tasks."""
