"""`metarl.core` under the name `core`: present in an editable install, never in a wheel."""
