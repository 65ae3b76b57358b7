"""agentwatch: watches the AI agents on a Linux machine and stops them where policy says stop."""

__version__ = "0.1.0"
