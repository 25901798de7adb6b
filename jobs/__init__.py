"""The jobs: one thin file each. Installed as `tunemill_jobs`, run as files from a checkout."""
