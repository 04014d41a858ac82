"""Reading optimised HLO: what a compiled program computes, moves and exchanges."""
