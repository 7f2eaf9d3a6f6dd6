//! A request from the socket to the response: chain, authentication, authorisation, admission, handlers, discovery, OpenAPI.
