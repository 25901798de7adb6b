"""From a template and variables to labelled answers of one or more models."""
