"""The contract on disk: folders, tables, histories."""
