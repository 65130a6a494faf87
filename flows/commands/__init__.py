"""The commands of `infalign`, one file each, with their tables."""
