"""Twisted's protocols on its epoll reactor."""

from __future__ import annotations

from twisted.internet import reactor
from twisted.internet.protocol import Factory, Protocol
from work import BACKLOG, HOST, from_arguments


class Echo(Protocol):
    def connectionMade(self) -> None:
        self.transport.setTcpNoDelay(True)
        # It is the producer of what it consumes: a client that does not read is not read from.
        self.transport.registerProducer(self.transport, True)

    def dataReceived(self, data: bytes) -> None:
        if work.kind == "sleep":
            reactor.callLater(work.seconds, self.transport.write, data)
            return
        work.block()
        self.transport.write(data)


port, work = from_arguments()
reactor.listenTCP(port, Factory.forProtocol(Echo), backlog=BACKLOG, interface=HOST)
reactor.run()
