package trunk

import (
	"io"
	"net"
	"testing"
)

// BenchmarkBulk carries 1 MiB writes one way; the reference is the same link
// without a trunk.
func BenchmarkBulk(b *testing.B) {
	b.Run("trunk", func(b *testing.B) {
		done := make(chan struct{})
		w := newWorld(b, func(st *Stream) {
			buf := make([]byte, 64<<10)
			_, _ = io.CopyBuffer(writerOnly{io.Discard}, st, buf)
			close(done)
		})
		st, err := w.Open(b.Context())
		must(b, err)
		pour(b, st)
		must(b, st.CloseWrite())
		<-done
	})
	b.Run("link", func(b *testing.B) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		must(b, err)
		done := make(chan struct{})
		go func() {
			c, _ := l.Accept()
			_, _ = io.CopyBuffer(writerOnly{io.Discard}, struct{ io.Reader }{c}, make([]byte, 64<<10))
			close(done)
		}()
		c, err := net.Dial("tcp", l.Addr().String())
		must(b, err)
		pour(b, c)
		_ = c.Close()
		<-done
		_ = l.Close()
	})
}

type writerOnly struct{ io.Writer }

func pour(b *testing.B, w io.Writer) {
	buf := make([]byte, 64<<10)
	b.SetBytes(1 << 20)
	b.ReportAllocs()
	for b.Loop() {
		for range 16 {
			if _, err := w.Write(buf); err != nil {
				b.Fatal(err)
			}
		}
	}
}
