"""The capture database: schema and migrations, the writer that fills it from the spool, read-only access for everyone else."""
