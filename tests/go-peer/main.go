// A node of the DHT as Go programs build it, with go-libp2p's own defaults wherever the wire is concerned.
//
// It does what a line of JSON on stdin says, one after the other, and answers each with one line on stdout. The first
// line on stdout says who it is and where. It ends when stdin does.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p"
	dht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/multiformats/go-multihash"
)

// patience bounds one command. A lookup among a few nodes on one machine takes milliseconds; one that meets nodes that
// were just ended, a dial's time-out.
const patience = 10 * time.Second

type command struct {
	// connect, provide, find, held, known or protocols
	Do string `json:"do"`
	// connect: with /p2p/ and the peer's id.
	Address string `json:"address"`
	// provide, find, held
	Key string `json:"key"`
	// protocols: of this peer.
	Peer string `json:"peer"`
}

type answer struct {
	Error string `json:"error,omitempty"`
	// find: who was found; held: whom this node's own store has; known: the routing table.
	Peers []node `json:"peers,omitempty"`
	// protocols
	Protocols []string `json:"protocols,omitempty"`
}

type node struct {
	ID        string   `json:"id"`
	Addresses []string `json:"addresses"`
}

func main() {
	listen := flag.String("listen", "/ip4/127.0.0.1/tcp/0", "the one address to listen at")
	flag.Parse()
	if err := run(*listen); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(listen string) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	host, err := libp2p.New(
		libp2p.ListenAddrStrings(listen),
		libp2p.Transport(tcp.NewTCPTransport),
		libp2p.Security(libp2ptls.ID, libp2ptls.New),
		libp2p.Security(noise.ID, noise.New),
		libp2p.Muxer(yamux.ID, yamux.DefaultTransport),
		libp2p.DisableRelay(),
		// Loopback and all: here it is how the others reach this node.
		libp2p.AddrsFactory(func(all []ma.Multiaddr) []ma.Multiaddr { return all }),
	)
	if err != nil {
		return err
	}
	defer host.Close()
	// No AddressFilter: its users give one that drops loopback, without one nothing is dropped.
	router, err := dht.New(ctx, host,
		dht.Mode(dht.ModeServer),
		dht.ProtocolPrefix("/spegel"),
		dht.DisableValues(),
	)
	if err != nil {
		return err
	}
	defer router.Close()

	out := json.NewEncoder(os.Stdout)
	if err := out.Encode(describe(peer.AddrInfo{ID: host.ID(), Addrs: host.Addrs()})); err != nil {
		return err
	}
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		var c command
		var a answer
		if err := json.Unmarshal(in.Bytes(), &c); err != nil {
			return err
		}
		if err := do(ctx, router, c, &a); err != nil {
			a.Error = err.Error()
		}
		if err := out.Encode(a); err != nil {
			return err
		}
	}
	return in.Err()
}

func do(ctx context.Context, router *dht.IpfsDHT, c command, a *answer) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	host := router.Host()
	switch c.Do {
	case "connect":
		info, err := peer.AddrInfoFromString(c.Address)
		if err != nil {
			return err
		}
		return host.Connect(ctx, *info)
	case "provide":
		key, err := keyOf(c.Key)
		if err != nil {
			return err
		}
		return router.Provide(ctx, key, true)
	case "find":
		key, err := keyOf(c.Key)
		if err != nil {
			return err
		}
		for found := range router.FindProvidersAsync(ctx, key, 0) {
			a.Peers = append(a.Peers, describe(found))
		}
		return nil
	case "held":
		key, err := keyOf(c.Key)
		if err != nil {
			return err
		}
		held, err := router.ProviderStore().GetProviders(ctx, key.Hash())
		for _, provider := range held {
			a.Peers = append(a.Peers, describe(provider))
		}
		return err
	case "known":
		for _, id := range router.RoutingTable().ListPeers() {
			a.Peers = append(a.Peers, describe(host.Peerstore().PeerInfo(id)))
		}
		return nil
	case "protocols":
		id, err := peer.Decode(c.Peer)
		if err != nil {
			return err
		}
		protocols, err := host.Peerstore().GetProtocols(id)
		for _, protocol := range protocols {
			a.Protocols = append(a.Protocols, string(protocol))
		}
		return err
	default:
		return fmt.Errorf("cannot %q", c.Do)
	}
}

// keyOf is where a text lives: CID version 1, raw codec, sha2-256.
func keyOf(text string) (cid.Cid, error) {
	hash, err := multihash.Sum([]byte(text), multihash.SHA2_256, -1)
	if err != nil {
		return cid.Undef, err
	}
	return cid.NewCidV1(cid.Raw, hash), nil
}

func describe(info peer.AddrInfo) node {
	described := node{ID: info.ID.String(), Addresses: []string{}}
	for _, address := range info.Addrs {
		described.Addresses = append(described.Addresses, address.String())
	}
	return described
}
