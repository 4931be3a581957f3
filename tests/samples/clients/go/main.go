// Go's HTTP, TLS, HTTP/2 and gRPC clients: goclient MODE HOST OTHER-HOST PORT; goclient lookup NAME.
package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/emptypb"
)

func main() {
	mode := os.Args[1]
	if mode == "lookup" {
		resolver := net.Resolver{PreferGo: true}
		fmt.Println(resolver.LookupHost(context.Background(), os.Args[2]))
		return
	}
	host, other := os.Args[2]+":"+os.Args[4], os.Args[3]+":"+os.Args[4]
	switch mode {
	case "http1":
		send(http.DefaultClient, host, host, nil)
		response, err := http.Post("http://"+host+"/ratings", "application/json", strings.NewReader(`{"rating": 5}`))
		fmt.Println(response, err)
	case "tls":
		_, err := http.Get("https://" + host + "/")
		fmt.Println(err)
	case "http2":
		client := cleartext()
		for _, authority := range []string{host, other, host} {
			send(client, host, authority, nil)
		}
	case "http2-large":
		header := http.Header{}
		for i := range 40 {
			header.Set(fmt.Sprintf("X-Large-%d", i), strings.Repeat("~", 500))
		}
		send(cleartext(), host, host, header)
	case "grpc":
		call(host, 2)
	case "grpc-authority":
		call(host, 1, grpc.WithAuthority(other))
	}
}

func cleartext() *http.Client {
	dial := func(_ context.Context, network, address string, _ *tls.Config) (net.Conn, error) {
		return net.Dial(network, address)
	}
	return &http.Client{Transport: &http2.Transport{AllowHTTP: true, DialTLSContext: dial}}
}

func send(client *http.Client, address, authority string, header http.Header) {
	request, err := http.NewRequest("GET", "http://"+address+"/reviews/0", nil)
	if err != nil {
		panic(err)
	}
	request.Host = authority
	if header != nil {
		request.Header = header
	}
	response, err := client.Do(request)
	if err != nil {
		fmt.Println(err)
		return
	}
	response.Body.Close()
}

func call(address string, times int, options ...grpc.DialOption) {
	options = append(options, grpc.WithTransportCredentials(insecure.NewCredentials()))
	connection, err := grpc.NewClient("passthrough:///"+address, options...)
	if err != nil {
		panic(err)
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	for range times {
		fmt.Println(connection.Invoke(ctx, "/bookinfo.Reviews/Get", &emptypb.Empty{}, &emptypb.Empty{}))
	}
}
