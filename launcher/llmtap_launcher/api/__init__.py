"""HTTP for managing and rating: applications without a process of their own, to be mounted where they are served."""
