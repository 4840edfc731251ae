//go:build unix

package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// startWeb runs a file server behind a tunnel; base is its URL through it.
func startWeb(t testing.TB, transport string) (dir, base string) {
	t.Helper()
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("no curl on this machine: apt-get install curl")
	}
	dir = t.TempDir()
	web := httptest.NewServer(http.FileServer(http.Dir(dir)))
	t.Cleanup(web.Close)
	target := strings.TrimPrefix(web.URL, "http://")
	return dir, "http://" + startTunnel(t, transport, target).forward.hostPort()
}

func curl(args ...string) error {
	out, err := exec.Command("curl", append([]string{"--silent", "--show-error", "--fail", "--noproxy", "*"}, args...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("curl: %w: %s", err, out)
	}
	return nil
}

func TestCurlFetchesFilesExactlyAndManyAtOnce(t *testing.T) {
	eachTransport(t, func(t *testing.T, transport string) {
		dir, base := startWeb(t, transport)
		const files = 12
		sums := make([]string, files)
		for i := range files {
			sums[i] = writeRandomFile(t, filepath.Join(dir, fmt.Sprint(i)), int64(i)*500_001+1)
		}
		got := t.TempDir()
		errs := make([]error, files)
		var fetches sync.WaitGroup
		for i := range files {
			fetches.Go(func() {
				errs[i] = curl("--output", filepath.Join(got, fmt.Sprint(i)), fmt.Sprint(base, "/", i))
			})
		}
		fetches.Wait()
		for i := range files {
			if errs[i] != nil {
				t.Error(errs[i])
			} else if hashFile(t, filepath.Join(got, fmt.Sprint(i))) != sums[i] {
				t.Errorf("file %d differs", i)
			}
		}
	})
}

func TestCurlReusesOneConnectionForSeveralFiles(t *testing.T) {
	dir, base := startWeb(t, overTCP)
	a := writeRandomFile(t, filepath.Join(dir, "a"), 100_000)
	b := writeRandomFile(t, filepath.Join(dir, "b"), 300_000)
	got := t.TempDir()
	if err := curl("--output", got+"/a", base+"/a", "--output", got+"/b", base+"/b"); err != nil {
		t.Fatal(err)
	}
	if hashFile(t, got+"/a") != a || hashFile(t, got+"/b") != b {
		t.Fatal("a file differs")
	}
}
