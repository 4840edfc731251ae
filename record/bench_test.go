//go:build unix

package record

import (
	"io"
	"syscall"
	"testing"
	"time"
)

// BenchmarkBulk is one way over loopback, by records and by crypto/tls on both
// sides, with the CPU time of the process for a GiB.
func BenchmarkBulk(b *testing.B) {
	for name, kind := range map[string]string{"record": "ours", "crypto_tls": "crypto/tls"} {
		b.Run(name, func(b *testing.B) {
			client, server := pair(b, kind)
			block, buf := make([]byte, 256<<10), make([]byte, 256<<10)
			go func() {
				for range b.N {
					_, _ = client.Write(block)
				}
			}()
			b.SetBytes(int64(len(block)))
			began := cpuTime(b)
			for range b.N {
				if _, err := io.ReadFull(server, buf); err != nil {
					b.Fatal(err)
				}
			}
			gib := float64(b.N) * float64(len(block)) / (1 << 30)
			b.ReportMetric((cpuTime(b)-began).Seconds()/gib, "cpu-s/GiB")
		})
	}
}

// cpuTime is what the process has used.
func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// A message that is on its way allocates nothing.
func TestNothingIsAllocatedForAMessage(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	client, server := pair(t, "ours")
	block, buf := make([]byte, 64<<10), make([]byte, 64<<10)
	from := io.Reader(server)
	once := func() {
		_, err := client.Write(block)
		must(t, err)
		_, err = io.ReadFull(from, buf)
		must(t, err)
	}
	for range 100 {
		once()
	}
	if n := testing.AllocsPerRun(200, once); n >= 1 {
		t.Errorf("%.1f allocations for 64 KiB", n)
	}
}
