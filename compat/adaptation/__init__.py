"""`metarl.adaptation` under the name `adaptation`: present in an editable install, never in a wheel."""
