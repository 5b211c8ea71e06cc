"""`metarl.env_runner` under the name `env_runner`: present in an editable install, never in a wheel."""
