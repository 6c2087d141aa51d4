"""How a new version takes over: promotions that wait for servers, and canaries that are judged."""
