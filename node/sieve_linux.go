package node

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// The sieve is classic BPF on our own sockets, which needs no right. The kernel
// runs a socket's filter over each packet that it has found to be the socket's,
// from the TCP or UDP header on, with the IP header at a negative offset, and
// drops what it returns 0 for, also where a load goes beyond the packet
// (Documentation/networking/filter.rst).

// layout is where a filter finds a packet's headers.
type layout struct{ network, transport uint32 }

// inKernel is the layout of a socket's filter.
var inKernel = layout{network: 0xfff00000} // SKF_NET_OFF, -0x100000

const (
	passAll  = 0xffffffff
	dropIt   = 0
	tcpFlags = 13 // offset (RFC 9293, 3.1)
	tcpSYN   = 0x02
	tcpACK   = 0x10
	udpData  = 8 // offset
	// minInitialID is how long a client's own guess of our connection ID is at
	// least (RFC 9000, 7.2); those that we give are shorter.
	minInitialID = 8
)

// filters are the programs for both kinds of socket; empty ones take the
// sockets' filters off.
type filters struct{ tcp, udp []unix.SockFilter }

func newFilters(tcp, udp []netip.Prefix) (f filters, err error) {
	if len(tcp) > 0 {
		f.tcp, err = assemble(sieveTCP(tcp, inKernel))
	}
	if len(udp) > 0 && err == nil {
		f.udp, err = assemble(sieveQUIC(udp, inKernel))
	}
	return f, err
}

func assemble(program []bpf.Instruction) ([]unix.SockFilter, error) {
	raw, err := bpf.Assemble(program)
	if err != nil {
		return nil, err
	}
	var code []unix.SockFilter
	for _, r := range raw {
		code = append(code, unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K})
	}
	return code, nil
}

// set sets the filter of one socket. Where that fails it has none.
func (f filters) set(fd int, stream bool) error {
	code := f.udp
	if stream {
		code = f.tcp
	}
	if len(code) == 0 {
		return unsieve(fd)
	}
	err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]})
	if err != nil {
		return errors.Join(err, unsieve(fd))
	}
	return nil
}

// unsieve takes a socket's filter off. A connection has that of the listener
// which it came to.
func unsieve(fd int) error {
	err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// sieveTCP drops the SYNs of those nets that would begin a connection.
func sieveTCP(nets []netip.Prefix, at layout) []bpf.Instruction {
	return append([]bpf.Instruction{
		bpf.LoadAbsolute{Off: at.transport + tcpFlags, Size: 1},
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: tcpSYN | tcpACK},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: tcpSYN, SkipTrue: 1},
		bpf.RetConstant{Val: passAll},
	}, dropFrom(nets, at)...)
}

// sieveQUIC drops those of the nets' Initial packets that would begin a
// connection, or go on after a Retry (RFC 9000, 17.2.2). Initials that answer
// ours, or belong to a handshake that has got its answer, are addressed to a
// connection ID of ours and have no token.
func sieveQUIC(nets []netip.Prefix, at layout) []bpf.Instruction {
	first := at.transport + udpData
	return append([]bpf.Instruction{
		bpf.LoadAbsolute{Off: first, Size: 1},
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0xf0},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0xc0, SkipTrue: 1},
		bpf.RetConstant{Val: passAll},
		bpf.LoadAbsolute{Off: first + 1, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 1, SkipTrue: 1}, // version 1
		bpf.RetConstant{Val: passAll},
		bpf.LoadAbsolute{Off: first + 5, Size: 1}, // how long our ID is
		bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: minInitialID, SkipTrue: 7},
		bpf.TAX{},
		bpf.LoadIndirect{Off: first + 6, Size: 1}, // how long theirs is
		bpf.ALUOpX{Op: bpf.ALUOpAdd},
		bpf.TAX{},
		bpf.LoadIndirect{Off: first + 7, Size: 1}, // how long the token is
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 0, SkipTrue: 1},
		bpf.RetConstant{Val: passAll},
	}, dropFrom(nets, at)...)
}

// dropFrom drops what comes from those nets and passes the rest. A socket for
// both IPs sees IPv4 packets as they are.
func dropFrom(nets []netip.Prefix, at layout) []bpf.Instruction {
	v4, v6 := dropFrom4(nets, at), dropFrom6(nets, at)
	return slices.Concat([]bpf.Instruction{
		bpf.LoadAbsolute{Off: at.network, Size: 1},
		bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 6, SkipTrue: 1},
		bpf.Jump{Skip: uint32(len(v6))},
	}, v6, []bpf.Instruction{
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 4, SkipTrue: 1},
		bpf.RetConstant{Val: passAll},
	}, v4)
}

func dropFrom4(nets []netip.Prefix, at layout) []bpf.Instruction {
	const source = 12 // RFC 791, 3.1
	code := []bpf.Instruction{bpf.LoadAbsolute{Off: at.network + source, Size: 4}}
	for _, n := range nets {
		if ip := n.Addr(); ip.Is4() {
			b := ip.As4()
			code = append(code,
				bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: binary.BigEndian.Uint32(b[:]), SkipTrue: 1},
				bpf.RetConstant{Val: dropIt})
		}
	}
	return append(code, bpf.RetConstant{Val: passAll})
}

// dropFrom6 compares the first 56 bits.
func dropFrom6(nets []netip.Prefix, at layout) []bpf.Instruction {
	const source = 8 // RFC 8200, 3
	code := []bpf.Instruction{
		bpf.LoadAbsolute{Off: at.network + source, Size: 4},
		bpf.StoreScratch{Src: bpf.RegA, N: 0},
		bpf.LoadAbsolute{Off: at.network + source + 4, Size: 4},
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0xffffff00},
		bpf.StoreScratch{Src: bpf.RegA, N: 1},
	}
	for _, n := range nets {
		if ip := n.Addr(); ip.Is6() {
			b := ip.As16()
			code = append(code,
				bpf.LoadScratch{Dst: bpf.RegA, N: 0},
				bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: binary.BigEndian.Uint32(b[:4]), SkipTrue: 3},
				bpf.LoadScratch{Dst: bpf.RegA, N: 1},
				bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: binary.BigEndian.Uint32(b[4:8]), SkipTrue: 1},
				bpf.RetConstant{Val: dropIt})
		}
	}
	return append(code, bpf.RetConstant{Val: passAll})
}
