"""Narrow views of a receipt: `lanewise receipt show RECEIPT --view NAME`.

A view computes nothing that the receipt, its step series or a base receipt does not hold. A value it cannot give is null
and `missing` says why. Field names are ours, with units; docs/VIEWS.md maps them to those of the article.
"""
