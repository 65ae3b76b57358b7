"""The rule language: YAML files to a Ruleset, with every error at its line and column."""
