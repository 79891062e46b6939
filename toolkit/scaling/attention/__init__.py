"""Attention patterns at equal compute over context lengths: arms, allocations, report."""
