"""The console at `/console`: pages for operators and tenants, rendered here, for a browser.

A page shows and changes what the HTTP routes show and change, through the same services and with
the same rights: a tenant's key sees its own, an admin's everything.
"""
