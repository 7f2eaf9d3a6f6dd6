// Stands in for the suite's image of csi-driver-host-path, of which tests of drivers (DRA, the CSI mock) use one thing: who connects to
// a unix socket in the pod is connected with who connects to a TCP port of it, which is the test itself, by port forwarding.
package main

import (
	"flag"
	"io"
	"log"
	"net"
	"os"
	"strings"
	"sync"
)

func listen(endpoint string) net.Listener {
	network, address := "unix", strings.TrimPrefix(endpoint, "unix://")
	if tcp, ok := strings.CutPrefix(endpoint, "tcp://"); ok {
		network, address = "tcp", tcp
	} else if err := os.Remove(address); err != nil && !os.IsNotExist(err) {
		log.Fatal(err)
	}
	l, err := net.Listen(network, address)
	if err != nil {
		log.Fatal(err)
	}
	return l
}

func connect(a, b net.Conn) {
	var done sync.WaitGroup
	for _, way := range [][2]net.Conn{{a, b}, {b, a}} {
		done.Go(func() {
			if _, err := io.Copy(way[0], way[1]); err != nil {
				log.Print(err)
			}
			a.Close()
			b.Close()
		})
	}
	done.Wait()
}

func main() {
	flag.Int("v", 0, "taken and not needed")
	endpoint := flag.String("endpoint", "", "unix socket of a driver")
	proxy := flag.String("proxy-endpoint", "", "TCP address by which the driver comes")
	flag.Parse()
	if *endpoint == "" || *proxy == "" {
		log.Fatal("only --endpoint with --proxy-endpoint is done here")
	}
	near, far := listen(*endpoint), listen(*proxy)
	for {
		a, err := near.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go func() {
			b, err := far.Accept()
			if err != nil {
				log.Fatal(err)
			}
			connect(a, b)
		}()
	}
}
