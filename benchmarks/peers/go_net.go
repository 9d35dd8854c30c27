// Go's net: a goroutine for each client, code that blocks, threads as many as there are cores.
//
//	go_net PORT [echo | sleep MS | rounds N]
//	go_net calibrate    prints how many rounds take a millisecond
package main

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"time"
)

const chunk = 64 * 1024

var sink uint64 // what is stored here must be computed

func compute(rounds int) {
	var total uint64
	for number := 0; number < rounds; number++ {
		total = total*31 + uint64(number)
	}
	if total == 1 { // never; a store each time would be a race between the goroutines
		sink = total
	}
}

// calibrate takes the fastest of many trials: what it takes when nobody disturbs.
func calibrate() int {
	const rounds = 1000000
	fastest := time.Duration(1 << 62)
	for trial := 0; trial < 50; trial++ {
		start := time.Now()
		compute(rounds)
		if taken := time.Since(start); taken < fastest {
			fastest = taken
		}
	}
	return int(1e6 * rounds / float64(fastest.Nanoseconds()))
}

func serve(client net.Conn, work func()) {
	defer client.Close()
	buffer := make([]byte, chunk)
	for {
		n, err := client.Read(buffer) // TCP_NODELAY is on by default
		if err != nil {
			return
		}
		work()
		if _, err := client.Write(buffer[:n]); err != nil {
			return
		}
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "go_net:", err)
	os.Exit(1)
}

func main() {
	if len(os.Args) < 2 {
		fail(fmt.Errorf("which port?"))
	}
	if os.Args[1] == "calibrate" {
		fmt.Println(calibrate())
		return
	}
	amount := 0.0
	if len(os.Args) > 3 {
		var err error
		if amount, err = strconv.ParseFloat(os.Args[3], 64); err != nil {
			fail(err)
		}
	}
	work := func() {}
	if len(os.Args) > 2 && os.Args[2] == "sleep" {
		pause := time.Duration(amount * float64(time.Millisecond))
		work = func() { time.Sleep(pause) }
	} else if len(os.Args) > 2 && os.Args[2] == "rounds" {
		rounds := int(amount)
		work = func() { compute(rounds) }
	}
	listener, err := net.Listen("tcp", "127.0.0.1:"+os.Args[1])
	if err != nil {
		fail(err)
	}
	for {
		client, err := listener.Accept()
		if err != nil {
			fail(err)
		}
		go serve(client, work)
	}
}
