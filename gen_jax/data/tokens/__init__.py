"""Token stores: corpora tokenised once, read by memory map in any order."""
