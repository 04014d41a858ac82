"""Reads optimised HLO: FLOPs, memory traffic and collectives of compiled programs."""
