"""The management API (`/api/v1/*`): FastAPI in the launcher, on a UNIX socket; the gateway forwards to it what may come in.

`app.create_app` puts it together of routers, one a file; another one is added to `app.ROUTERS`.
"""
